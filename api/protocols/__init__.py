"""What a client can ask for, one package a protocol; what they share lies beside them."""
