"""What a level is worth: features with limits, prices, benefits."""
