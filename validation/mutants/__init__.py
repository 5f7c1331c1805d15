"""Mistakes put into copies of the program: do the tests notice?"""
