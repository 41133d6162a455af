#!/bin/sh
# An OCI runtime that makes processes and no containers, in a few milliseconds: no namespace, no cgroup.
# `$0.d/ID.pid` and `$0.d/ID.go` are a container; while `$0.d/ID.fails` is there, create, start and exec of
# it fail.
dir=$0.d
id= command= log=/dev/stderr bundle= process= pid_file= all=
fail() {
    echo "{\"level\":\"error\",\"msg\":\"$*\"}" >>"$log"
    exit 1
}
while [ $# -gt 0 ]; do
    case $1 in
    --log) log=$2 && shift ;;
    --root | --log-format | --resources) shift ;;
    --bundle) bundle=$2 && shift ;;
    --process) process=$2 && shift ;;
    --pid-file) pid_file=$2 && shift ;;
    --force) all=yes ;;
    --*) ;;
    *)
        if [ -z "$command" ]; then
            command=$1
        elif [ -z "$id" ]; then
            id=$1
        else
            signal=$1
        fi
        ;;
    esac
    shift
done
[ "$command" = create ] || read -r pid 2>/dev/null <"$dir/$id.pid" || fail "container does not exist"
lives() { kill -0 "$pid" 2>/dev/null; }
# The script of `"args": ["/bin/sh", "-c", SCRIPT]`, in which nothing needs quotes.
script() {
    read -r json <"$1"
    script=${json#*'"-c","'}
    script=${script%%'"'*}
}
# Makes a process that does `$1`, and becomes a program that waits for its word and not for its end: a shell
# would take the status of one that ends at once, which is for the sub-reaper.
begin() {
    setsid sh -c "echo \$\$ >\"\$1\"; $1" "$script" "$pid_file" "$dir/$id.made" "$2" &
    exec cat "$dir/$id.made" >/dev/null
}
case $command in create | start | exec) [ ! -e "$dir/$id.fails" ] || fail "on purpose" ;; esac
case $command in
create)
    script "$bundle/config.json"
    mkfifo "$dir/$id.go" "$dir/$id.made" || fail "it is there"
    # Open for both, so that no word is lost before it is read.
    exec 3<>"$dir/$id.go"
    begin 'echo $$ >"$3"; echo >"$2"; read -r go <&3; exec sh -c "$0" 3<&-' "$dir/$id.pid"
    ;;
start)
    lives || fail "container is not running"
    echo go 1<>"$dir/$id.go"
    ;;
exec)
    lives || fail "container is not running"
    script "$process"
    begin 'echo >"$2"; exec sh -c "$0"'
    ;;
kill)
    lives || fail "process already finished"
    kill "-$signal" "$pid" 2>/dev/null || fail "unknown signal"
    ;;
delete)
    [ -z "$all" ] || kill -9 "$pid" 2>/dev/null
    rm -f "$dir/$id.pid" "$dir/$id.go" "$dir/$id.made"
    ;;
esac
