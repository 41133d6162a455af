# fish completion of containerd-shim-berth-v1, as `containerd-shim-berth-v1 completions fish` prints it.

function __containerd_shim_berth_v1
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' $HOME -- $words[1])
    set -e words[1]
    set -l offers ($program complete-words $words "$current" 2>/dev/null)
    set -l flag (string match -r -- '^-[^=]*=' $current)
    set -l path (string replace -r -- '^-[^=]*=' '' $current)
    switch "$offers[1]"
        case files
            string replace -r '^' -- "$flag" (__fish_complete_path "$path")
        case directories
            string replace -r '^' -- "$flag" (__fish_complete_directories "$path" '')
        case words
            set -e offers[1]
            printf '%s\n' $offers
    end
end

complete -c containerd-shim-berth-v1 -f -a '(__containerd_shim_berth_v1)'
