"""The bundled scenarios, profiles and schema, as data files of the application."""
