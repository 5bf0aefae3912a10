"""The facts of a competition like TGS Salt Identification: what `pipeline/carvana.py` is for Carvana."""
from pipeline.data.competition import Competition

SALT = Competition(
    slug="tgs-salt-like",
    width_px=101,
    height_px=90,
    stem="[0-9a-f]{10}",
    image_suffix=".png",
    mask_suffix=".png",
    suffix_in_tables=False,  # the tables say 00a3af90ab
    submission_header=("id", "rle_mask"),
    mask_set="masks",
    mask_table="train.csv",
)
