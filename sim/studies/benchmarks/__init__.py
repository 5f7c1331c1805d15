"""Result files of benchmark clients: read, simulated, and compared."""
