"""The map of the house.

Everything flows one way, through files; a stage is one file in `stages/`, one make target, one artefact.

    competition folder ──folds──▶ folds.csv ──train──▶ fold{k}/ ──validate──▶ oof/ ──threshold──▶ threshold.json
                                                          │                                          │
                                                          └──────────────── predict ◀────────────────┘
                                                                               │
                                                  score ◀── check ◀── submissions/RUN.csv.gz

    __main__.py     the command line: one sub-command a stage, no logic
    carvana.py      the competition's facts, each once
    config.py       YAML -> frozen, strict, typed settings
    paths.py        every path that a stage reads or writes
    problem.py      the one exception that a user is meant to see
    files.py  progress.py  stop.py      whole files or none; bars and stopwatches; Ctrl+C and SIGTERM
    threads.py      work for several threads, its results in order

    stages/         one file a stage: `run(...)`. Stages meet through files and never import one another
        demo_data  shrink  folds  train  validate  threshold  blend  predict  check  score
        cutout          any photos, for somebody who wants pictures and no score

    data/           bytes -> tensors
        archive         files out of Kaggle's zips, read where they lie
        images          JPEG -> pixels, mask -> coverage -> full size: one grid for all of them
        competition     the folder's pictures, masks and tables, checked at the door
        folds           which car is held out when; no make on both sides
        augment         random changes that move picture and coverage alike
        dataset         the order of the pictures: a function of the seed alone
        stream          pictures to predict, in batches of one shape, at every scale that is wanted
        synthetic*      cars that nobody photographed, for the demo

    model/          tensors -> logits
        unet            Ronneberger's U-Net, from scratch
        build           a config's words -> a network that eats bytes (smp's encoders too)
        losses  optim  ema  checkpoint

    inference/      logits -> probability at full size
        device          where, and in which precision
        load            checkpoint -> network
        views           test-time augmentation: a picture seen in several ways
        predictor       mean over runs, folds and views, then full size, then one rounding
        evaluate        what is made of predictions while the next ones are under way
        blend           what each of several runs should weigh
        cutout          a photo with a transparent background

    masks/          what a mask is: rle (run lengths), dice (at every cut from a histogram), on_device (both on a GPU)
    leaderboard/    submission (read), writer (each row proven), packing (gzip), parts (what a kill leaves), check

`model/` and `masks/` know neither stages nor files of the competition; `data/` knows no network.
"""
