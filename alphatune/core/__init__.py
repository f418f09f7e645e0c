"""What everything else stands on: errors, metrics, versions, and the files and processes of the machine."""
