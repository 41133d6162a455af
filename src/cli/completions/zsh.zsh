#compdef containerd-shim-berth-v1
# zsh completion of containerd-shim-berth-v1, as `containerd-shim-berth-v1 completions zsh` prints it.

_containerd-shim-berth-v1() {
    local -a before lines whole begun
    local line word
    (( CURRENT <= 2 )) || before=("${(@Q)words[2,CURRENT-1]}")
    lines=("${(@f)$("${(Q)words[1]/#\~/$HOME}" complete-words "${before[@]}" "$PREFIX" 2>/dev/null)}")
    case $lines[1] in
        files | directories)
            [[ $PREFIX != -*=* ]] || compset -P '-*='
            if [[ $lines[1] == files ]]; then _files; else _files -/; fi
            ;;
        words)
            for line in "${(@)lines[2,-1]}"; do
                word=${line%%$'\t'*}
                if [[ $word == *= ]]; then
                    begun+=("$word")
                elif [[ $line == *$'\t' ]]; then
                    whole+=("${word//:/\\:}")
                else
                    whole+=("${word//:/\\:}:${line#*$'\t'}")
                fi
            done
            _describe 'word' whole
            (( $#begun == 0 )) || compadd -S '' -- "${begun[@]}"
            ;;
    esac
}

# Loaded by name from $fpath, or read with `source`.
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _containerd-shim-berth-v1 "$@"
else
    compdef _containerd-shim-berth-v1 containerd-shim-berth-v1
fi
