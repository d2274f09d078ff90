"""The page on which people sample, fill and judge images: its work, its pictures and its layout."""
