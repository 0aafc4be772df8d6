"""One reader for each format of bitext: catalogs of many languages, and files of one pair."""
