"""GGUF files that tests write."""


def written(writer):
    """Let a writer of the package gguf write what it was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
