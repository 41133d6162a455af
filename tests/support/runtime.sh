#!/bin/sh
# An OCI runtime that does what a test asks: `$0.d/COMMAND` holds one of
#   hang          never ends, and has a child that never ends
#   fail TEXT     ends with 1, the runtime's log says TEXT as runc and crun do
#   die           is killed by SIGKILL
#   garbage       prints what is no JSON and ends with 0
#   nopid         ends with 0, did nothing, wrote no pid file
#   late TEXT     does the command, then fails as above
#   slow SECONDS  waits, then does the command
#   tired SECONDS does the command, then waits
#   do TEXT       does TEXT, shell in which `real` is the command and $pid_file its file, then the command
# and where it holds nothing, the real runtime (`$0.d/real`) does the command.
# Every call is noted in `$0.d/calls`; its arguments, directory, owners and files of the standard streams
# umask and environment in `$0.d/last.COMMAND`; its descriptors in `$0.d/files.COMMAND`.
dir=$0.d
command= log=/dev/stderr expect=
for arg; do
    case $expect in
    log) log=$arg ;;
    esac
    case $expect,$arg in
    ,--root | ,--log-format | ,--rootless) expect=skip ;;
    ,--log) expect=log ;;
    ,--log=*) log=${arg#--log=} ;;
    ,-*) ;;
    ,*) command=$arg && break ;;
    *) expect= ;;
    esac
done
owners=$(stat -Lc %u:%g /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)
files=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)
(ls -l /proc/$$/fd >"$dir/files.$command")
{ printf '%s\n' "$@"; echo "cwd=$PWD"; echo stdio=$owners; echo stdio-files=$files; echo umask=$(umask); env; } >"$dir/last.$command"
echo "$command" >>"$dir/calls"
fail() {
    echo "{\"level\":\"error\",\"msg\":\"$*\",\"time\":\"2026-01-01T00:00:00Z\"}" >>"$log"
    exit 1
}
real() { "$(cat "$dir/real")" "$@"; }
pid_file() { for arg; do [ "$last" != --pid-file ] || echo "$arg"; last=$arg; done; }
read -r mood text 2>/dev/null <"$dir/$command"
case $mood in
hang) sleep 4321 & sleep 4321 ;;
fail) fail "$text" ;;
die) kill -9 $$ ;;
garbage) echo '{"pid":'; exit 0 ;;
nopid) exit 0 ;;
late) "$(cat "$dir/real")" "$@" || exit; fail "$text" ;;
slow) sleep "$text" ;;
tired) "$(cat "$dir/real")" "$@" && exec sleep "$text" ;;
do) pid_file=$(pid_file "$@") && eval "$text" ;;
esac
exec "$(cat "$dir/real")" "$@"
