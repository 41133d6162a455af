//! Events outlive every state of containerd.
