"""A run of several processes: which one this is, how they meet and agree, how one that is stuck or lost is told, and restarts."""
