"""Curation's scorers on MetaWorld, each judged by the policies that are trained on what it keeps."""
