"""Files as OpenAI's SDK uploads, lists, reads and deletes them."""
