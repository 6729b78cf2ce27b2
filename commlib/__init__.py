"""commlib: collective communication algorithms that are programmable, proved and portable."""
