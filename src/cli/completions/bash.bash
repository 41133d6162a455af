# bash completion of containerd-shim-berth-v1, as `containerd-shim-berth-v1 completions bash` prints it.

_containerd_shim_berth_v1() {
    local -a words=() offers=()
    local word last line breaks='' head='' glue=''
    # bash breaks words where COMP_WORDBREAKS says; those of ours have such letters within.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if [[ ${#words[@]} -gt 0 && ( -n $glue || $word == [=:]* ) ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
        glue=
        [[ $word != *[=:] ]] || glue=yes
    done
    mapfile -t offers < <("${COMP_WORDS[0]/#\~/$HOME}" complete-words "${words[@]}" 2>/dev/null)
    COMPREPLY=()
    case ${offers[0]-} in
        files) compopt -o default ;;
        directories) compopt -o dirnames ;;
        words)
            # What stands before the last break is there already.
            last=${words[-1]}
            [[ $COMP_WORDBREAKS != *=* ]] || breaks+='='
            [[ $COMP_WORDBREAKS != *:* ]] || breaks+=':'
            [[ -z $breaks ]] || head=${last%"${last##*[$breaks]}"}
            for line in "${offers[@]:1}"; do
                word=${line%%$'\t'*}
                [[ $word != *= ]] || compopt -o nospace
                printf -v word %q "${word#"$head"}"
                COMPREPLY+=("$word")
            done
            ;;
    esac
}

complete -F _containerd_shim_berth_v1 containerd-shim-berth-v1
