if __name__ == "ir":
    raise ImportError("import planish.ir, not ir: a second copy of every class would follow")
