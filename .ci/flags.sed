# From the line of a target in the Makefile, print what stands in brackets at its end as flags, in the form that
# .ci/commands.awk gives those of commands: `gpu-proof: ## ... (DATA PIECE)` -> of/value/DATA/--data of/value/PIECE/--piece
/.*(/!d
s///
s/).*//
s,[A-Z]\+,of/value/&/--\L&,gp
