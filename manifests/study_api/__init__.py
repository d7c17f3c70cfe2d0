"""The API of FineTuneStudy as an OpenAPI schema with its rules: what `generate.py` makes the CRD and its reference of.

kinds      the kinds of fields, each with a description and bounds
spec       what people write
status     what the operator writes
crd        the kind as a whole, and what may not change
reference  the page about all of it
"""
