"""The benchmark behind `scripts/bench`: embcache, its peers and the limits, side by side in one run."""
