//! What lets shells complete: a script for each, which asks the program itself (complete.rs) at each TAB.
//! So all shells offer the same, and what the program knows, and what runs.

/// The script of a shell that the definition names.
pub(super) fn script(shell: &str) -> &'static str {
    match shell {
        "bash" => include_str!("completions/bash.bash"),
        "zsh" => include_str!("completions/zsh.zsh"),
        _ => include_str!("completions/fish.fish"),
    }
}
