# Read pipeline/options.py and __main__.py; print a line for each command and each of its options, split by tabs:
#
#     train/command/train         Train a fold, or continue where it was stopped
#     train/value/GPUS/--gpus     N       train a fold on each, or one on all
#     common/list/SET/--set       a.b=1   override settings of the config
#
# There are a value, a list (every word of the variable is a value of its own) and a switch (off for 0 and nothing).
# A list of paths is one value: a path may have blanks, and the command knows which of them exist.

/^class Common\(/ { name = "common" }
/^@command\(/ { decorated = 1 }
/^def / {
    name = decorated ? substr($2, 1, index($2 "(", "(") - 1) : ""
    gsub("_", "-", name)
    decorated = 0
}
name != "" && match($0, /^    [a-z_]+: Annotated\[/) {
    variable = toupper(substr($1, 1, length($1) - 1))
    flag = "--" tolower(variable)
    gsub("_", "-", flag)
    kind = /Annotated\[bool/ ? "switch" : /Annotated\[list\[/ && !/metavar="PATH"/ ? "list" : "value"
    example = kind == "switch" ? "1" : quoted("metavar=\"")
    if (example == "" && match($0, /Literal\[[^]]*/)) {
        example = substr($0, RSTART + 8, RLENGTH - 8)
        gsub("\"", "", example)
        gsub(", ", "|", example)
    }
    print name "/" kind "/" variable "/" flag "\t" example "\t" quoted("help=f?\"")
}
name != "" && name != "common" && match($0, /^    """[^"]*/) {
    sentence = substr($0, 8, RLENGTH - 7)
    sub(/\.$/, "", sentence)
    print name "/command/" name "\t" sentence
    name = ""
}

# What follows a pattern, up to the next double quote.
function quoted(pattern) {
    if (!match($0, pattern)) return ""
    rest = substr($0, RSTART + RLENGTH)
    return substr(rest, 1, index(rest, "\"") - 1)
}
