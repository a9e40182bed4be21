"""Model families, one file each, behind the protocol of `protocol.py`. Models know no mesh."""
