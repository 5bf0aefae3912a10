"""The map of the house.

Everything flows one way, through files; a stage is one file in `stages/`, one make target, one artefact.

    Kaggle ──download──▶ competition folder

    competition folder ──folds──▶ folds.csv ──train──▶ fold{k}/ ──validate──▶ oof/ ──threshold──▶ threshold.json
                                                          │                                          │
                                                          └──────────────── predict ◀────────────────┘
                                                                               │
                    ledger.csv ◀── submit ◀── score ◀── check ◀── submissions/RUN.csv.gz, RUN.json
                         │
                         └──▶ leaderboard, reproduce

    __main__.py     the command line: one sub-command a stage, no logic
    carvana.py      the competition's facts, each once
    config.py       YAML -> frozen, strict, typed settings
    paths.py        every path that a stage reads or writes
    problem.py      the one exception that a user is meant to see
    files.py  progress.py  stop.py      whole files or none; bars and stopwatches; Ctrl+C and SIGTERM
    curves.py                           what TensorBoard shows of a run
    git.py  substage.py                 which code this is; a stage as a command of its own
    resume.py       where an earlier start of a training left off
    parallel.py  launch.py  memory.py   several processes that train one network; starting them; what fits
    threads.py      work for several threads, its results in order

    stages/         one file a stage: `run(...)`. Stages meet through files and never import one another
        download  demo_data  demo_rooms  shrink  folds  train  validate  threshold  blend  predict  check  score
        submit  leaderboard  reproduce
        report  compare where a run is wrong; where one of two is better
        cutout          any photos, for somebody who wants pictures and no score
        demo            runs most of the others, one after another, as commands

    data/           bytes -> tensors
        archive         files out of Kaggle's zips, read where they lie
        images          JPEG -> pixels, mask -> coverage -> full size: one grid for all of them
        collection      all that the engine knows of its pictures: a name for each, a size, what is true of it
        competition     Kaggle's folder: pictures, masks and tables, checked at the door
        image_folder    anybody's own: images, masks, and a table of groups
        verify          is a downloaded file whole: every checksum, every picture; also while it arrives
        folds           which car is held out when; no make on both sides
        augment         random changes that move picture and coverage alike
        dataset         the order of the pictures: a function of the seed alone
        suspects        masks that may be wrong, left out of training or put right
        stream          pictures to predict, in batches of one shape, at every scale that is wanted
        synthetic*      cars that nobody photographed, for the demo
        nyuv2*          rooms with depth out of NYU Depth v2, one file; what its 894 words mean in 40 and 13 classes
        rooms           rooms that nobody photographed, for a small file of the same structure

    model/          tensors -> logits
        unet            Ronneberger's U-Net, from scratch
        build           a config's words -> a network that eats bytes (smp's encoders too)
        losses  optim  ema  checkpoint
        batch_norm      over the batches of several processes

    inference/      logits -> probability at full size
        device          where, and in which precision
        load            checkpoint -> network
        views           test-time augmentation: a picture seen in several ways
        predictor       mean over runs, folds and views, then full size, then one rounding
        class_maps      the same mean of several classes, then the largest
        evaluate        what is made of predictions while the next ones are under way
        blend           what each of several runs should weigh
        kept            what is kept of held-out predictions: histograms, and probabilities to look at
        preview         a few held-out pictures, for TensorBoard
        cutout          a photo with a transparent background

    masks/          what a mask is: rle (run lengths), dice (at every cut from one histogram), on_device (on GPUs),
                    confusion (scores of classes), palette (colours for them)
    analysis/       what is looked at: tables in which a person finds where a run is wrong
        errors  table   one picture: how much, how far from the edge, where worst; then all of them
        suspects        masks that confident networks of all runs speak against
        drift  pieces   test masks against those of training; the connected pieces of run lengths
        paired          two runs on the same pictures, with an interval of confidence over cars
    report/         how that is shown, in one HTML file
        palette         the colours, light and dark, told apart by everybody
        svg  charts     matplotlib's figures as SVG in those colours
        overview        tables -> charts: where Dice is lost
        held_out        what a run left behind of its held-out pictures
        choice  gallery which pictures, and each as a photo with masks and errors to lay over it
        classes  matrix the same of several classes: their scores and what they are taken for; with held_out_classes,
                        gallery_classes and classes_page
        page            jinja2, and in parts/ the templates, style and script
    leaderboard/    the other end
        submission (read)  writer (each row proven)  check  score
        packing  parts  gzip by several threads; what a kill leaves behind of a prediction
        origin          what a submission was made of, by its content
        ledger          one row per submission, and what Kaggle says of it
        kaggle          the only file that knows Kaggle's client
        patience        how often to ask again, and what to say when it was no use
        stand_in        a loopback server that the client takes for Kaggle, for the demo and the tests

`model/` and `masks/` know neither stages nor files of the competition; `data/` knows no network.
"""
