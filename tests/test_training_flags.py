"""ood_training.py with the flags of two READMEs: main.py of VMDLS, train.py of leave-out."""

from __future__ import annotations

import dataclasses
import json
import shlex

import pytest
from conftest import ROOT

import models
from ood import cli
from ood.config import InputError, build, read_json, split
from ood.data import info
from ood.methods.leaveout import training_flags as leaveout
from ood.methods.leaveout.settings import Settings as FoldSettings
from ood.methods.vmdls import training_flags as vmdls
from ood.methods.vmdls.flags import is_vmdls
from ood.methods.vmdls.settings import Settings as VMDLSSettings
from ood.training import runs

CIFAR = (
    "--data_dir ./data --known_dataset cifar_known --unknown_dataset imagenet-resize "
    "--data_transforms cifar --input_height 32 --class_num 10 --margin_jump 1.0 --gpus 0, "
    "--margin_max_distance 32 --latent_dim 32 --step_size 100 --max_epochs 500 "
    "--generation_epoch 0 --lower_bound 0.95 "
)

# The README's training commands: which config describes the same, and the command's flags.
COMMANDS = {
    "vmdls_cifar10_vgg": CIFAR + "--enc_type vgg --enc_out_dim 1024 --opt adam --lr 1e-3 "
    "--margins_epoch 10 --batch_classes 8 --sample_count 8 --batch_size 64",
    "vmdls_cifar10_resnet18": CIFAR + "--enc_type resnet18 --enc_out_dim 512 --opt sgd --lr 1e-2 "
    "--margins_epoch 10 --batch_classes 10 --sample_count 8 --batch_size 400 --kl_coeff 0.1",
    "vmdls_cifar10_densenet": CIFAR + "--enc_type densenet --enc_out_dim 342 --opt sgd --lr 1e-1 "
    "--margins_epoch 30 --batch_classes 10 --sample_count 8 --batch_size 420 --kl_coeff 0.1",
    "vmdls_cifar10_wresnet": CIFAR + "--enc_type wresnet --enc_out_dim 640 --lr 1e-3 "
    "--margins_epoch 40 --batch_classes 10 --sample_count 20 --batch_size 640 --kl_coeff 0.1 "
    "--finetune --finetune_lr 1e-2 --weights ./checkpoints/finetuning_wideresnet.tar",
    "vmdls_cifar100_densenet": "--data_dir ./data --known_dataset cifar100_known "
    "--unknown_dataset imagenet-resize --data_transforms cifar --input_height 32 --class_num 100 "
    "--margin_jump 1.0 --gpus 0, --margin_max_distance 64 --latent_dim 64 --step_size 64 "
    "--max_epochs 200 --generation_epoch 0 --lower_bound 0.05 --enc_type densenet "
    "--enc_out_dim 342 --opt sgd --lr 1e-3 --margins_epoch 40 --batch_classes 20 "
    "--sample_count 20 --batch_size 400 --finetune --finetune_lr 1e-2 "
    "--weights ./checkpoints/checkpoint_100.pth.tar",
    "vmdls_mnist": "--data_dir ./data --known_dataset mnist --unknown_dataset omniglot "
    "--data_transforms mnist --input_height 28 --class_num 10 --margin_jump 1.0 --gpus 0, "
    "--margin_max_distance 32 --latent_dim 32 --step_size 100 --max_epochs 500 "
    "--generation_epoch 0 --lower_bound 0.05 --enc_type mnist-conv --enc_out_dim 500 --opt adam "
    "--lr 1e-4 --margins_epoch 1 --batch_classes 10 --sample_count 16 --batch_size 400 "
    "--kl_coeff 0.1 --offline",
}
# What a training does not look at: these commands do not say it, or say it for the test.
OF_THE_TEST = ("ae_features", "autoencoder_arch", "test_batch_classes", "test_sample_count")


def parsed(module, words):
    parser = cli.Parser("test")
    module.add_flags(parser)
    for name in ("device", "out_dir", "seed", "data_dir"):
        parser.flag(f"-{name}", help="")
    return parser.parse_args(shlex.split(words))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_of_main_are_the_published_configs(name):
    assert is_vmdls(shlex.split(COMMANDS[name]))
    flags = parsed(vmdls, COMMANDS[name])
    settings = vmdls.read_settings(flags, None)
    config = ROOT / "configs" / f"{name}.json"
    published = build(VMDLSSettings, split(read_json(config), VMDLSSettings, name)[1], str(config))
    same = {part: getattr(settings, part) for part in OF_THE_TEST}
    if not published.finetune:  # main.py has another default for what only finetuning reads
        same["finetune_lr"] = settings.finetune_lr
    assert settings == dataclasses.replace(published, **same)
    assert vmdls.device_of(flags) == "cuda:0"
    inert = " ".join(vmdls.without_effect(flags))
    assert "--unknown_dataset (" in inert and "--input_height (" in inert
    facts = info(settings.id_dataset)
    assert settings.mean is None and facts.num_classes == settings.num_classes


@pytest.mark.parametrize("name", ("vmdls_cifar10_vgg", "vmdls_mnist"))
def test_the_features_of_the_encoder_are_checked(name):
    flags = parsed(vmdls, COMMANDS[name])
    settings = vmdls.read_settings(flags, None)
    vmdls.check_features(settings, flags, models)
    flags.enc_out_dim += 1
    with pytest.raises(
        InputError, match=f"features; leave the flag out or give {flags.enc_out_dim - 1}"
    ):
        vmdls.check_features(settings, flags, models)


@pytest.mark.parametrize(
    "name, words",
    (
        ("cifar10_densenet", "-c checkpoints/cifar10_fold_1_dense_checkpoint --fold 1"),
        ("cifar100_wideresnet", "--checkpoint x --fold 1 --in-dataset cifar100 --wide"),
    ),
)
def test_commands_of_train_are_the_published_configs(name, words):
    assert leaveout.is_train(shlex.split(words))
    flags = parsed(leaveout, words)
    settings, config = leaveout.read_settings(flags, ROOT / "configs")
    assert config == str(ROOT / "configs" / f"{name}_leaveout.json")
    values = split(read_json(config), FoldSettings, name)[1]
    assert settings == build(FoldSettings, {**values, "fold": 1}, name)
    assert leaveout.folder_of(flags) == shlex.split(words)[1]


def test_every_flag_of_train_has_its_setting():
    words = (
        "--num-classes 10 --batch-size 7 --epochs 3 --start-epoch 1 --lr 0.2 --gamma 0.3 --beta 0.5"
        " --momentum 0.8 --wd 0.001 --schedule 1 2 --gpu 1 --fold 4 -c run --in-dataset cifar10"
    )
    flags = parsed(leaveout, words)
    settings, _ = leaveout.read_settings(flags, ROOT / "configs")
    given = {
        "batch_size": 7,
        "epochs": 3,
        "lr": 0.2,
        "gamma": 0.3,
        "beta": 0.5,
        "momentum": 0.8,
        "weight_decay": 0.001,
        "milestones": (1, 2),
        "fold": 4,
    }
    assert {name: getattr(settings, name) for name in given} == given
    assert leaveout.device_of(flags) == "cuda:1"
    assert leaveout.without_effect(flags) == [
        "--start-epoch (the run folder knows how far it came)"
    ]


def test_resume_of_train_takes_the_file_or_nothing(tmp_path):
    (tmp_path / "checkpoint.pth.tar").touch()
    flags = parsed(leaveout, f"--fold 1 --resume {tmp_path}/checkpoint.pth.tar")
    assert leaveout.folder_of(flags) == str(tmp_path)
    assert parsed(leaveout, "--fold 1 --resume").resume == "" and not flags.c
    with pytest.raises(InputError, match="different run folders"):
        leaveout.folder_of(parsed(leaveout, f"-c elsewhere --resume {tmp_path}/checkpoint.pth.tar"))


def test_a_config_wins_over_the_readmes():
    assert not leaveout.is_train(["-config", "x.json", "-fold", "1"])
    assert not leaveout.is_train(["-config", "x.json", "-classifier", "c"])


def test_main_trains_and_test_finds_the_run(tmp_path, call_script):
    common = ("--enc_type", "small_cnn", "--known_dataset", "mnist5k", "--latent_dim", 4)
    common += ("-device", "cpu", "-checkpoints_dir", tmp_path, "-limit", 100)
    done = call_script(
        "ood_training.py",
        *common,
        *("--max_epochs", 1, "--batch_classes", 5, "--sample_count", 4, "--opt", "adam"),
        *("--margin_jump", 1, "--unknown_dataset", "letters", "--offline", "--num_workers", 8),
    )
    assert done.returncode == 0, done.stderr
    assert "without effect: --unknown_dataset (" in done.stdout
    (folder,) = (path for path in tmp_path.iterdir() if (path / "config.json").is_file())
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "vmdls" and config["margins_epoch"] == 0 and config["kl_coeff"] == 0.1
    assert sorted(set(runs.FILES) - {path.name for path in folder.iterdir()}) == []
    tested = call_script(
        *("test.py", *common, "--unknown_dataset", "letters", "-out_dir", tmp_path / "results")
    )
    assert tested.returncode == 0, tested.stderr
    assert folder.name in tested.stdout
