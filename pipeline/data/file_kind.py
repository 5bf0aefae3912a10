"""Recognise a file by its first bytes: what a download, a browser or a table program left under another name."""
import re

FIRST_BYTES = 2048  # enough for all of them
SIGNATURES = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
    b"\xd0\xcf\x11\xe0": "Excel", b"%PDF": "PDF", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "RAR",
}  # fmt: skip
WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml|!--)", re.IGNORECASE)
DESCRIPTIONS = {
    "gzip": "a gzip file", "zip": "a zip archive", "UTF-16": "text in UTF-16", "Excel": "an Excel workbook",
    "PDF": "a PDF", "7z": "a 7z archive", "RAR": "a RAR archive", "web page": "a web page",
}  # fmt: skip
ADVICE = {
    "gzip": "rename it to end in .csv.gz",
    "zip": "rename it to end in .csv.zip",
    "UTF-16": "save it as ASCII or UTF-8",
    "Excel": "save it as CSV",
    "web page": "it may be Kaggle's login page: accept the rules there and download it again",
}


def kind_of(first: bytes) -> str:
    """Return the kind, a key of DESCRIPTIONS, of a file that begins with these bytes; "" for anything else."""
    kind = next((kind for signature, kind in SIGNATURES.items() if first.startswith(signature)), "")
    if kind == "zip" and (b"[Content_Types].xml" in first or b"xl/" in first):
        return "Excel"
    return "web page" if WEB_PAGE.match(first) else kind
