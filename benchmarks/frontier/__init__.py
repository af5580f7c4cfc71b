"""How good is a table after its fit, at how many bytes, and beside other libraries?"""
