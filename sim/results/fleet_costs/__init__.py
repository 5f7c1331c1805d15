"""What a fleet costs, from the price of a GPU hour: usage is measured once, and any price is put on it afterwards."""
