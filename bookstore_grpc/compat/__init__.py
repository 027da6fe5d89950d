"""All uses of other packages' private parts, with the versions that they were tried on."""
