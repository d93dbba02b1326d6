"""What lies behind `scripts/stress`: faults by the thousand, and a count of what they did."""
