# Print targets and variables, from what .ci/commands.awk printed and from the `##` comments of the Makefile.
# only: names of the targets and variables to print, in their order here; all of them without it.

BEGIN { split(only, names, " "); for (i in names) wanted[names[i]] = 1 }

FILENAME == "-" && /\/command\// {  # a command of pipeline/__main__.py
    split($1, path, "/")
    help[path[1]] = substr($0, length($1) + 2)
    order[++targets] = path[1]
    next
}
FILENAME == "-" {  # one of its options
    split($0, cells, "\t")
    split(cells[1], path, "/")
    takes[path[1]] = takes[path[1]] " " path[3]
    add_variable(path[3] "=" (path[2] == "list" ? "\"" cells[2] " ...\"" : cells[2]), path[1], cells[3])
    next
}
/^[a-z-]+:.*## / {  # a target of the Makefile
    name = substr($0, 1, index($0, ":") - 1)
    help[name] = substr($0, index($0, "## ") + 3)
    order[++targets] = name
}
match($0, /^## [A-Z_]+=("[^"]*"|[^ ]*)/) {  # one of its variables
    example = substr($0, 4, RLENGTH - 3)
    words = substr($0, RLENGTH + 1)
    sub(/^ +/, "", words)
    add_variable(example, "", words)
}

END {
    print "Targets"
    for (i = 1; i <= targets; i++) if (!only || order[i] in wanted) print_target(order[i])
    print "\nVariables, as in: make train CONFIG=configs/cpu.yaml FOLD=0 SET=\"train.epochs=3 data.scale=4\""
    for (i = 1; i <= variables; i++) for (j = i; j <= variables; j++) if (name_of(j) == name_of(i)) print_variable(j)
}

function name_of(i) { return substr(shown[i], 1, index(shown[i], "=") - 1) }

function print_variable(i,    of) {
    if (printed[i]++ || only && !(name_of(i) in wanted)) return
    of = commands[i] == "common" || commands[i] == "" ? "" : commands[i] ": "
    printf "  %-25s %s%s\n", shown[i], of, text[i]
}

# One line for all commands that say the same of it.
function add_variable(example, command, words,    key) {
    key = example words
    if (key in line_of) commands[line_of[key]] = commands[line_of[key]] ", " command
    else {
        line_of[key] = ++variables
        shown[variables] = example
        commands[variables] = command
        text[variables] = words
    }
}

function print_target(name,    line, more) {
    line = sprintf("  %-13s  %s", name, help[name])
    more = only || !(name in takes) ? "" : " (" substr(takes[name], 2) ")"
    if (length(line more) > 110) more = sprintf("\n%16s%s", "", more)
    print line more
}
