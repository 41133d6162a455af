#!/bin/sh
# Draws packaging/demo.svg, the picture in README.md: the terminal of a run of `make demo`. As root.
#   picture.sh           runs the demo for it
#   picture.sh RECORD    draws one that was recorded: script -qec 'make demo' RECORD
set -eu
cd "$(dirname "$0")/.."
picture=packaging/demo.svg
new=$(mktemp)
trap 'rm -f "$new" "$new.record"' EXIT

if [ -z "${1:-}" ]; then
    script -qec 'make demo' "$new.record" >/dev/null
    set -- "$new.record"
fi
grep -q 'COMMAND_EXIT_CODE="0"' "$1" || { echo "picture: the demo failed, see $1" >&2; exit 1; }

# One <text> a line of the terminal, folded at its edge; of the escape sequences only colours and bold count.
sed -e '/^Script started on /d' -e '/^Script done on /d' "$1" | tr -d '\r' | expand | awk -v columns=100 '
function style(code) {
    if (code ~ /(^|;)0?$/) return ""
    if (code ~ /33|93/) return "y"
    if (code ~ /32|92/) return "g"
    return "b"
}
function escaped(part) {
    gsub(/&/, "\\&amp;", part); gsub(/</, "\\&lt;", part); gsub(/>/, "\\&gt;", part)
    return part
}
# Adds text to the line as it is drawn; a full line is kept.
function put(part, room) {
    while (part != "") {
        if (used == columns) keep()
        room = columns - used
        shown = escaped(substr(part, 1, room))
        drawn = drawn (class == "" ? shown : "<tspan class=\"" class "\">" shown "</tspan>")
        used += length(substr(part, 1, room))
        part = substr(part, room + 1)
    }
}
function keep() { lines[++count] = drawn; drawn = ""; used = 0 }
{
    sub(/ +$/, "")
    if (count == 0 && $0 == "") next
    class = $0 ~ /^\$ / ? "c" : ""
    while (match($0, /\033\[[0-9;]*[A-Za-z]/)) {
        put(substr($0, 1, RSTART - 1))
        class = style(substr($0, RSTART + 2, RLENGTH - 3))
        $0 = substr($0, RSTART + RLENGTH)
    }
    put($0)
    keep()
}
END {
    while (lines[count] == "") count--
    width = columns * 7.83 + 32
    height = count * 17 + 32
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\">\n", width, height, width, height
    print "<title>A terminal that shows a run of make demo</title>"
    print "<style>"
    print "rect { fill: #0d1117 } text { fill: #e6edf3; font: 13px ui-monospace, Menlo, Consolas, monospace; white-space: pre }"
    print ".b { font-weight: bold } .c { fill: #79c0ff } .g { fill: #7ee787 } .y { fill: #e3b341 }"
    print "@media (prefers-color-scheme: light) { rect { fill: #f6f8fa } text { fill: #1f2328 }"
    print "  .c { fill: #0550ae } .g { fill: #116329 } .y { fill: #7d4e00 } }"
    print "</style>"
    print "<rect width=\"100%\" height=\"100%\" rx=\"8\"/>"
    for (line = 1; line <= count; line++)
        if (lines[line] != "")
            printf "<text x=\"16\" y=\"%d\" xml:space=\"preserve\">%s</text>\n", line * 17 + 12, lines[line]
    print "</svg>"
}' >"$new"
mv "$new" "$picture"
chmod 0644 "$picture"
echo "drawn $picture: $(stat -c %s "$picture") bytes"
