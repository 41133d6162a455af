//! Metrics, beside the files of the kernel that they are read from.
