"""Processes of their own on a device: started, spoken to, limited, and why they died."""
