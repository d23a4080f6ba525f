"""Files of any kind to records, each with the physical line it starts on."""
