"""The map of the code.

Data flow one way, through files. A stage is one file and one make target; stages never import one another.

    Kaggle ──download──▶ competition folder

    competition folder ──folds──▶ folds.csv ──train──▶ fold{k}/best.pt ──refine──▶ fold{k}/refiner.pt
                                                             │                         │
                                                             ├──── validate ◀──────────┤
                                                             │        │                │
                                                             │      oof/ ──threshold──▶ threshold.json
                                                             │                         │
                                                             └──── predict ◀───────────┘
                                                                      │
       report/index.html ◀──report──   submissions/RUN.csv.gz, RUN.json ──check──submit──▶ Kaggle, ledger.csv

The files in this folder are the mission, in this order:

    __main__.py     the command line: a command is a typed function
    options.py      the options that every command takes
    execution.py    where its stages run: here, on several GPUs, at Kaggle
    carvana.py      the facts of the competition, each once
    config.py       YAML -> frozen, strict settings
    paths.py        what a stage reads and writes
    folds.py        images -> folds.csv; no make, or other group, crosses a fold
    train.py        the images outside a fold -> its best.pt, a network at a fraction of the resolution
    refine.py       best.pt or short.pt, the same images -> refiner.pt, which corrects the edges on finer tiles
    validate.py     both on the images of its fold -> out-of-fold (OOF) histograms and predictions
    threshold.py    out-of-fold histograms -> the threshold with the best Dice
    blend.py        several runs -> the weights of their mean
    predict.py      checkpoints, threshold, test images -> a submission
    check.py        what Kaggle would refuse in a submission, or score badly by mistake
    score.py        a submission and a solution.csv -> public and private Dice
    cutout.py       any images -> the object on a transparent background, or class maps
    compete.py      above the stages: runs all of them for one submission, and resumes

Packages hold what the stages share. Each knows only its arguments, and imports only from packages above it in this list
(tests/test_house.py):

    runtime/        the machine: device, processes (distributed, launch, signals), memory, files, yaml_text, arguments,
                    validation (errors of settings), git, progress bars, steps (a bar over several), and Problem, the
                    one exception that a user is meant to see
    masks/          what a mask is: run lengths (rle), Dice at every threshold (dice), scores of classes (confusion)
    model/          tensors -> logits: unet, factory (architectures), pretrained (encoders from files), refiner, losses,
                    optim, ema, checkpoint, sync_batchnorm, fold_norms (batch norms into convolutions, to predict)
    data/           bytes -> tensors: file_kind, zip_reader, csv_table, cut_off (damaged masks), spreadsheet (tables
                    that people write), images (decoding, the grid), augment; dataset (the protocol and its table of
                    readers: competition, image_folder with folder_files and mask_files, nyuv2); grouping (who is held
                    out with whom); inspection (of all files before the first step); loader (training and validation
                    batches), tiles (along the edge), image_stream (test images), image_files (any images, to be cut
                    out), pseudo (labels of test images), relabel, shrink
    inference/      logits -> probabilities at full size: tta, ensemble, edge (refined tiles), class_maps, loading,
                    evaluate, oof (what is stored of held-out predictions), stored_threshold
    training/       loop (steps, epochs, checkpoints: of both networks) and what surrounds it: fold_data, init_from
                    (fine-tuning), networks, state, resume, coarse (predictions to refine), evaluation, monitor
                    (TensorBoard), previews, find_batch
    submission/     plan (what predicts, at which threshold), writer (each row verified), shards that survive a kill,
                    checks, known_mistakes (of masks), scoring, provenance
    report/         HTML pages that show where a run is wrong (report) and which of two is better (compare); gains and
                    speeds, the table and the time left of `compete`
    kaggle/         Kaggle's client, download, submit, ledger, leaderboard, reproduce; remote (stages on Kaggle's GPUs:
                    packing what is sent, session there, homecoming of its outputs, kernels for the calls)
    synthetic/      test doubles: drawn cars and rooms, a local fake Kaggle, the demo
"""
