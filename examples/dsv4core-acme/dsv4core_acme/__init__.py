"""The acme backend of dsv4core; `plugin` describes it, the rest is imported when it is used."""
