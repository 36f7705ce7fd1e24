"""Ways to reach hardware, one file each."""
