"""From a configured run to a staged project in RAM, and, once the model is at home, to the record.

State lies on the RAM disk itself, as temp(): after a reboot it is gone, and exactly what is missing runs again.
Priorities rise along the chain, so that what a finished job frees goes to the same run's next job, never to
another run's mount.
"""


rule mount_ramdisk:
    """Give the run a RAM disk that works here, and write its lease."""
    output:
        lease=temp(RAM_ROOT / "{run}/lease.json"),
    log:
        "results/{run}/logs/mount_ramdisk.log",
    priority: 1
    group:
        CHAIN
    conda:
        "../envs/ramtrain.yaml"
    threads: run_threads
    resources:
        **HELD,
        **lasts(5),
    script:
        "../../scripts/mount_ramdisk.py"


rule stage_project:
    """Let the trainer see its project with all writes going to RAM."""
    input:
        lease=rules.mount_ramdisk.output.lease,
    output:
        stage=temp(RAM_ROOT / "{run}/stage.json"),
    log:
        "results/{run}/logs/stage_project.log",
    priority: 2
    group:
        CHAIN
    conda:
        "../envs/ramtrain.yaml"
    threads: run_threads
    resources:
        **HELD,
        **lasts(10),
    script:
        "../../scripts/stage_project.py"


rule unmount_run:
    """Release the RAM disk and write the run's record.

    Only the export is an input: should this job be cut short when the lease is gone already, it alone runs again.
    """
    input:
        export="results/{run}/export.json",
    output:
        record="results/{run}/record.json",
    log:
        "results/{run}/logs/unmount_run.log",
    priority: 5
    group:
        CHAIN
    conda:
        "../envs/ramtrain.yaml"
    threads: run_threads
    resources:
        **HELD,
        **lasts(5),
    script:
        "../../scripts/unmount_run.py"
