//! OOM kills, Update, Pause and Pids, with real cgroups.
