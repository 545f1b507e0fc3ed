"""From a staged project to a verified model at home, and in the store."""


rule train_run:
    """Run the trainer under supervision; its params are what a change of trains the run again."""
    input:
        lease=rules.mount_ramdisk.output.lease,
        stage=rules.stage_project.output.stage,
    output:
        train=temp(RAM_ROOT / "{run}/train.json"),
    log:
        "results/{run}/logs/train_run.log",
    priority: 3
    group:
        CHAIN
    conda:
        "../envs/ramtrain.yaml"
    threads: run_threads
    resources:
        **HELD,
        **lasts(),
    params:
        training=lambda wildcards: RUNS[wildcards.run].training,
    script:
        "../../scripts/train_run.py"


rule export_model:
    """Bring the model, the artifacts and the log home; read them back from the disk and compare."""
    input:
        lease=rules.mount_ramdisk.output.lease,
        stage=rules.stage_project.output.stage,
        train=rules.train_run.output.train,
    output:
        export="results/{run}/export.json",
    log:
        "results/{run}/logs/export_model.log",
    priority: 4
    group:
        CHAIN
    conda:
        "../envs/ramtrain.yaml"
    threads: run_threads
    resources:
        **HELD,
        **lasts(15),
    script:
        "../../scripts/export_model.py"


rule store_run:
    """Put the model, the artifacts and the record into the store too, where one is configured."""
    input:
        export=rules.export_model.output.export,
        record=rules.unmount_run.output.record,
    output:
        stored="results/{run}/stored.json",
    log:
        "results/{run}/logs/store_run.log",
    priority: 6
    conda:
        "../envs/ramtrain.yaml"
    params:
        url=lambda wildcards: RUNS[wildcards.run].store.url,
        options=lambda wildcards: dict(RUNS[wildcards.run].store.options),
    script:
        "../../scripts/store_run.py"
