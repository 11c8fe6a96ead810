"""The papers behind the names of `ood.compat`, and the attribute `info`, which gives a record.

To add a class: a row here under its name, and `info = Info()` in the class or a base of it.
"""

from __future__ import annotations

from ood.compat.records import (
    BenchmarkInfo,
    DatasetInfo,
    DetectorInfo,
    LossInfo,
    Paper,
    Representation,
    Role,
    Task,
)


def _paper(title: str, venue: str, year: int, where: str, code: str | None = None) -> Paper:
    """Make a record. `where`: an arXiv id or address; `code`: a name on GitHub or an address."""
    url = where if where.startswith("http") else f"https://arxiv.org/abs/{where}"
    if code is not None and not code.startswith("http"):
        code = f"https://github.com/{code}"
    return Paper(title, venue, year, url, code)


# fmt: off
PAPERS = {key: _paper(*row) for key, row in {
    # scores
    "baseline": (
        "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural "
        "Networks",
        "ICLR", 2017, "1610.02136", "hendrycks/error-detection",
    ),
    "calibration": (
        "On Calibration of Modern Neural Networks",
        "ICML", 2017, "1706.04599", "gpleiss/temperature_scaling",
    ),
    "scaling_ood": (
        "Scaling Out-of-Distribution Detection for Real-World Settings",
        "ICML", 2022, "1911.11132", "hendrycks/anomaly-seg",
    ),
    "energy": (
        "Energy-based Out-of-distribution Detection",
        "NeurIPS", 2020, "2010.03759", "weitliu/energy_ood",
    ),
    "entropy_seg": (
        "Entropy Maximization and Meta Classification for Out-of-Distribution Detection in "
        "Semantic Segmentation",
        "ICCV", 2021, "2012.06575", "robin-chan/meta-ood",
    ),
    "gen": (
        "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection",
        "CVPR", 2023,
        "https://openaccess.thecvf.com/content/CVPR2023/html/"
        "Liu_GEN_Pushing_the_Limits_of_Softmax-Based_"
        "Out-of-Distribution_Detection_CVPR_2023_paper.html",
        "XixiLiu95/GEN",
    ),
    "openmax": (
        "Towards Open Set Deep Networks",
        "CVPR", 2016, "1511.06233", "abhijitbendale/OSDN",
    ),
    "dropout": (
        "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
        "ICML", 2016, "1506.02142",
    ),
    "odin": (
        "Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
        "ICLR", 2018, "1706.02690", "facebookresearch/odin",
    ),
    "mahalanobis": (
        "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial "
        "Attacks",
        "NeurIPS", 2018, "1807.03888", "pokaxpoka/deep_Mahalanobis_detector",
    ),
    "rmd": (
        "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
        "arXiv", 2021, "2106.09022",
    ),
    "knn": (
        "Out-of-Distribution Detection with Deep Nearest Neighbors",
        "ICML", 2022, "2204.06507", "deeplearning-wisc/knn-ood",
    ),
    "nnguide": (
        "Nearest Neighbor Guidance for Out-of-Distribution Detection",
        "ICCV", 2023, "2309.14888", "roomo7time/nnguide",
    ),
    "fdbd": (
        "Fast Decision Boundary based Out-of-Distribution Detector",
        "ICML", 2024, "2312.11536", "litianliu/fDBD-OOD",
    ),
    "nci": (
        "Detecting Out-of-Distribution Through the Lens of Neural Collapse",
        "CVPR", 2025, "2311.01479", "litianliu/NCI-OOD",
    ),
    "pnml": (
        "Single Layer Predictive Normalized Maximum Likelihood for Out-of-Distribution Detection",
        "NeurIPS", 2021, "2110.09246", "kobybibas/pnml_ood_detection",
    ),
    "she": (
        "Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization "
        "with Modern Hopfield Energy",
        "ICLR", 2023, "https://openreview.net/forum?id=KkazG4lgKL",
    ),
    "dice": (
        "DICE: Leveraging Sparsification for Out-of-Distribution Detection",
        "ECCV", 2022, "2111.09805", "deeplearning-wisc/dice",
    ),
    "vim": (
        "ViM: Out-Of-Distribution with Virtual-logit Matching",
        "CVPR", 2022, "2203.10807", "haoqiwang/vim",
    ),
    "lts": (
        "Logit Scaling for Out-of-Distribution Detection",
        "Machine Vision and Applications", 2025, "2409.01175", "andrijazz/lts",
    ),
    "mcm": (
        "Delving into Out-of-Distribution Detection with Vision-Language Representations",
        "NeurIPS", 2022, "2211.13445", "deeplearning-wisc/MCM",
    ),
    "ash": (
        "Extremely Simple Activation Shaping for Out-of-Distribution Detection",
        "ICLR", 2023, "2209.09858", "andrijazz/ash",
    ),
    "scale": (
        "Scaling for Training Time and Post-hoc Out-of-distribution Detection Enhancement",
        "ICLR", 2024, "2310.00227", "kai422/SCALE",
    ),
    "react": (
        "ReAct: Out-of-distribution Detection With Rectified Activations",
        "NeurIPS", 2021, "2111.12797", "deeplearning-wisc/react",
    ),
    "vra": (
        "Variational Rectified Activation for Out-of-distribution Detection",
        "NeurIPS", 2023, "2302.11716",
    ),
    "rankfeat": (
        "RankFeat: Rank-1 Feature Removal for Out-of-distribution Detection",
        "NeurIPS", 2022, "2209.08590", "KingJamesSong/RankFeat",
    ),
    "gram": (
        "Detecting Out-of-Distribution Examples with Gram Matrices",
        "ICML", 2020, "1912.12510", "VectorInstitute/gram-ood-detection",
    ),
    "nac": (
        "Neuron Activation Coverage: Rethinking Out-of-distribution Detection and Generalization",
        "ICLR", 2024, "2306.02879",
    ),
    "gradnorm": (
        "On the Importance of Gradients for Detecting Distributional Shifts in the Wild",
        "NeurIPS", 2021, "2110.00218", "deeplearning-wisc/gradnorm_ood",
    ),
    "gradunc": (
        "Gradients as a Measure of Uncertainty in Neural Networks",
        "ICIP", 2020, "2008.08030",
    ),
    # losses
    "agnostophobia": (
        "Reducing Network Agnostophobia",
        "NeurIPS", 2018, "1811.04110", "Vastlab/Reducing-Network-Agnostophobia",
    ),
    "cac": (
        "Class Anchor Clustering: a Loss for Distance-based Open Set Recognition",
        "WACV", 2021, "2004.02434", "dimitymiller/cac-openset",
    ),
    "center": (
        "A Discriminative Feature Learning Approach for Deep Face Recognition",
        "ECCV", 2016, "https://ydwen.github.io/papers/WenECCV16.pdf", "ydwen/caffe-face",
    ),
    "confidence": (
        "Learning Confidence for Out-of-Distribution Detection in Neural Networks",
        "arXiv", 2018, "1802.04865", "uoguelph-mlrg/confidence_estimation",
    ),
    "ii": (
        "Learning a Neural-network-based Representation for Open Set Recognition",
        "SDM", 2020, "1802.04365", "shrtCKT/opennet",
    ),
    "logitnorm": (
        "Mitigating Neural Network Overconfidence with Logit Normalization",
        "ICML", 2022, "2205.09310", "hongxin001/logitnorm_ood",
    ),
    "mchad": (
        "Multi-Class Hypersphere Anomaly Detection",
        "ICPR", 2022,
        "https://ieeexplore.ieee.org/document/9956337",
        "https://gitlab.com/kkirchheim/mchad",
    ),
    "oe": (
        "Deep Anomaly Detection with Outlier Exposure",
        "ICLR", 2019, "1812.04606", "hendrycks/outlier-exposure",
    ),
    "scone": (
        "Feed Two Birds with One Scone: Exploiting Wild Data for Both Out-of-Distribution "
        "Generalization and Detection",
        "ICML", 2023, "2306.09158", "deeplearning-wisc/scone",
    ),
    "svdd": (
        "Deep One-Class Classification",
        "ICML", 2018,
        "https://proceedings.mlr.press/v80/ruff18a.html",
        "lukasruff/Deep-SVDD-PyTorch",
    ),
    "sad": (
        "Deep Semi-Supervised Anomaly Detection",
        "ICLR", 2020, "1906.02694", "lukasruff/Deep-SAD-PyTorch",
    ),
    "vos": (
        "VOS: Learning What You Don't Know by Virtual Outlier Synthesis",
        "ICLR", 2022, "2202.01197", "deeplearning-wisc/vos",
    ),
    "cider": (
        "How to Exploit Hyperspherical Embeddings for Out-of-Distribution Detection?",
        "ICLR", 2023, "2203.04450",
    ),
    "t2fnorm": (
        "T2FNorm: Train-time Feature Normalization for OOD Detection in Image Classification",
        "CVPR Workshops", 2024, "2305.17797",
    ),
    "rotation": (
        "Using Self-Supervised Learning Can Improve Model Robustness and Uncertainty",
        "NeurIPS", 2019, "1906.12340",
    ),
    "openmix": (
        "OpenMix: Exploring Outlier Samples for Misclassification Detection",
        "CVPR", 2023, "2303.17093",
    ),
    # data sets and benchmarks
    "openood": (
        "OpenOOD: Benchmarking Generalized Out-of-Distribution Detection",
        "NeurIPS", 2022, "2210.07242", "Jingkang50/OpenOOD",
    ),
    "openood15": (
        "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection",
        "DMLR", 2024, "2306.09301", "Jingkang50/OpenOOD",
    ),
    "openmibood": (
        "OpenMIBOOD: Open Medical Imaging Benchmarks for Out-Of-Distribution Detection",
        "CVPR", 2025, "2503.16247", "remic-othr/OpenMIBOOD",
    ),
    "ssb": (
        "Open-Set Recognition: a Good Closed-Set Classifier is All You Need?",
        "ICLR", 2022, "2110.06207",
    ),
    "dissecting": (
        "Dissecting Out-of-Distribution Detection and Open-Set Recognition: A Critical "
        "Analysis of Methods and Benchmarks",
        "IJCV", 2024, "2408.16757", "Visual-AI/Dissect-OOD-OSR",
    ),
    "chars74k": (
        "Character Recognition in Natural Images",
        "VISAPP", 2009, "https://teodecampos.github.io/chars74k/decampos_etal_visapp2009.pdf",
    ),
    "corruptions": (
        "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        "ICLR", 2019, "1903.12261", "hendrycks/robustness",
    ),
    "fishyscapes": (
        "The Fishyscapes Benchmark: Measuring Blind Spots in Semantic Segmentation",
        "IJCV", 2021, "1904.03215", "hermannsblum/bdl-benchmark",
    ),
    "lostandfound": (
        "Lost and Found: Detecting Small Road Hazards for Self-Driving Vehicles",
        "IROS", 2016, "1609.04653",
    ),
    "fooling": (
        "Deep Neural Networks are Easily Fooled: High Confidence Predictions for "
        "Unrecognizable Images",
        "CVPR", 2015, "1412.1897",
    ),
    "goe": (
        "On Outlier Exposure with Generative Models",
        "NeurIPS MLSW", 2022,
        "https://openreview.net/forum?id=SU7OAfhc8OM",
        "kkirchheim/mlsw2022-goe",
    ),
    "adversarial": (
        "Natural Adversarial Examples",
        "CVPR", 2021, "1907.07174", "hendrycks/natural-adv-examples",
    ),
    "faces": (
        "The Many Faces of Robustness: A Critical Analysis of Out-of-Distribution Generalization",
        "ICCV", 2021, "2006.16241", "hendrycks/imagenet-r",
    ),
    "mnistc": (
        "MNIST-C: A Robustness Benchmark for Computer Vision",
        "arXiv", 2019, "1906.02337", "google-research/mnist-c",
    ),
    "mvtec": (
        "The MVTec Anomaly Detection Dataset: A Comprehensive Real-World Dataset for "
        "Unsupervised Anomaly Detection",
        "IJCV", 2021, "https://link.springer.com/article/10.1007/s11263-020-01400-4",
    ),
    "ninco": (
        "In or Out? Fixing ImageNet Out-of-Distribution Detection Evaluation",
        "ICML", 2023, "2306.00826", "j-cb/NINCO",
    ),
    "mos": (
        "MOS: Towards Scaling Out-of-distribution Detection for Large Semantic Space",
        "CVPR", 2021, "2105.01879",
    ),
    "imagenetv2": ("Do ImageNet Classifiers Generalize to ImageNet?", "ICML", 2019, "1902.10811"),
    "imagenetes": (
        "Unexplored Faces of Robustness and Out-of-Distribution: Covariate Shifts in "
        "Environment and Sensor Domains",
        "CVPR", 2024, "2404.15882", "Edw2n/ImageNet-ES",
    ),
    "pixmix": (
        "PixMix: Dreamlike Pictures Comprehensively Improve Safety Measures",
        "CVPR", 2022, "2112.05135", "andyzoujm/pixmix",
    ),
    "resynthesis": ("Detecting the Unexpected via Image Resynthesis", "ICCV", 2019, "1904.07595"),
    "smiyc": (
        "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation",
        "NeurIPS", 2021, "2104.14812",
    ),
    "sumnist": (
        "Towards Deep Anomaly Detection with Structured Knowledge Representations",
        "SAFECOMP", 2023, "https://link.springer.com/chapter/10.1007/978-3-031-40953-0_32",
    ),
    "textures": ("Describing Textures in the Wild", "CVPR", 2014, "1311.3618"),
    "wikitext": ("Pointer Sentinel Mixture Models", "ICLR", 2017, "1609.07843"),
}.items()}
# fmt: on

# Detectors and losses: {name: the paper}.
DETECTORS = {
    "ASH": "ash",
    "DICE": "dice",
    "EnergyBased": "energy",
    "Entropy": "entropy_seg",
    "GEN": "gen",
    "GMM": None,
    "GradNorm": "gradnorm",
    "GradUncertainty": "gradunc",
    "Gram": "gram",
    "KLMatching": "scaling_ood",
    "KNN": "knn",
    "LTS": "lts",
    "MCD": "dropout",
    "MCM": "mcm",
    "Mahalanobis": "mahalanobis",
    "MahalanobisODIN": "mahalanobis",
    "MaxLogit": "scaling_ood",
    "MaxSoftmax": "baseline",
    "MultiMahalanobis": "mahalanobis",
    "NACUE": "nac",
    "NCI": "nci",
    "NNGuide": "nnguide",
    "ODIN": "odin",
    "OpenMax": "openmax",
    "PNML": "pnml",
    "RMD": "rmd",
    "RankFeat": "rankfeat",
    "ReAct": "react",
    "SCALE": "scale",
    "SHE": "she",
    "TemperatureScaling": "calibration",
    "VRA": "vra",
    "ViM": "vim",
    "WeightedEBO": "vos",
    "fDBD": "fdbd",
}
LOSSES = {
    "BackgroundClassLoss": "agnostophobia",
    "CACLoss": "cac",
    "CIDERLoss": "cider",
    "CenterLoss": "center",
    "ConfidenceLoss": "confidence",
    "DeepSADLoss": "sad",
    "DeepSVDDLoss": "svdd",
    "EnergyMarginLoss": "scone",
    "EnergyRegularizedLoss": "energy",
    "EntropicOpenSetLoss": "agnostophobia",
    "IILoss": "ii",
    "ISHLoss": "scale",
    "LogitNorm": "logitnorm",
    "MCHADLoss": "mchad",
    "ObjectosphereLoss": "agnostophobia",
    "OpenMixLoss": "openmix",
    "OutlierExposureLoss": "oe",
    "RotationLoss": "rotation",
    "T2FNormLoss": "t2fnorm",
    "VOSRegLoss": "vos",
    "VirtualOutlierSynthesizingRegLoss": "vos",
}
# Those that also work on maps of logits, with a label or a score per position.
PIXELWISE = {
    "EnergyBased",
    "Entropy",
    "GEN",
    "MCD",
    "MaxLogit",
    "MaxSoftmax",
    "ReAct",
    "WeightedEBO",
    "BackgroundClassLoss",
    "CrossEntropyLoss",
    "EnergyRegularizedLoss",
    "EntropicOpenSetLoss",
    "OutlierExposureLoss",
    "VOSRegLoss",
}

BENCHMARKS = {
    **dict.fromkeys(("CIFAR10_ODIN", "CIFAR100_ODIN"), "odin"),
    **dict.fromkeys(("CIFAR10_OpenOOD", "CIFAR100_OpenOOD"), "openood15"),
    **dict.fromkeys(("ImageNet_OpenOOD", "ImageNet1K_OpenOOD", "ImageNet200_OpenOOD"), "openood15"),
    **dict.fromkeys(("MIDOG_OpenMIBOOD", "PhaKIR_OpenMIBOOD", "OASIS3_OpenMIBOOD"), "openmibood"),
    **dict.fromkeys(("CUB_SSB", "StanfordCars_SSB", "Aircraft_SSB"), "dissecting"),
}

TEST, SHIFT, OUTLIERS = Role.OOD_TEST, Role.DISTRIBUTION_SHIFT, Role.AUXILIARY_OUTLIERS
IMAGENET_TERMS = "ImageNet terms of access (non-commercial research)"
# Sets with a label per image or text: {name: (roles, paper, licence, page)}.
DATASETS = {
    "CIFAR100C": ((SHIFT,), "corruptions", "CC-BY-4.0", "https://zenodo.org/record/3555552"),
    "CIFAR100GAN": ((OUTLIERS,), "goe", "MIT", "https://github.com/kkirchheim/mlsw2022-goe"),
    "CIFAR10C": ((SHIFT,), "corruptions", "CC-BY-4.0", "https://zenodo.org/record/2535967"),
    "Chars74k": (
        (TEST,),
        "chars74k",
        "none stated; the authors ask for a citation and a notice of use",
        "https://info-ee.surrey.ac.uk/CVSSP/demos/chars74k/",
    ),
    "FSDD": (
        (),
        None,
        "CC-BY-SA-4.0",
        "https://github.com/Jakobovski/free-spoken-digit-dataset",
    ),
    "FeatureVisDataset": ((OUTLIERS,), "pixmix", None, "https://github.com/andyzoujm/pixmix"),
    "FoolingImages": ((TEST,), "fooling", None, "https://anhnguyen.me/project/fooling/"),
    "FractalDataset": ((OUTLIERS,), "pixmix", None, "https://github.com/andyzoujm/pixmix"),
    "GaussianNoise": ((TEST,), None, None, None),
    "ImageNet200": ((Role.IN_DISTRIBUTION,), "openood15", IMAGENET_TERMS, None),
    "ImageNet800": ((OUTLIERS,), "openood15", IMAGENET_TERMS, None),
    "ImageNetA": (
        (SHIFT,),
        "adversarial",
        None,
        "https://github.com/hendrycks/natural-adv-examples",
    ),
    "ImageNetC": ((SHIFT,), "corruptions", "CC-BY-4.0", "https://zenodo.org/record/2235448"),
    "ImageNetES": ((SHIFT,), "imagenetes", None, "https://github.com/Edw2n/ImageNet-ES"),
    "ImageNetO": (
        (TEST,),
        "adversarial",
        None,
        "https://github.com/hendrycks/natural-adv-examples",
    ),
    "ImageNetR": ((SHIFT,), "faces", None, "https://github.com/hendrycks/imagenet-r"),
    "ImageNetV2": ((SHIFT,), "imagenetv2", None, "https://github.com/modestyachts/ImageNetV2"),
    "LSUNCrop": ((TEST,), "odin", None, "https://github.com/facebookresearch/odin"),
    "LSUNResize": ((TEST,), "odin", None, "https://github.com/facebookresearch/odin"),
    "MNISTC": ((SHIFT,), "mnistc", "CC-BY-4.0", "https://zenodo.org/record/3239543"),
    "Multi30k": ((), None, None, None),
    "NINCO": ((TEST,), "ninco", "CC-BY-4.0", "https://zenodo.org/record/8013288"),
    "NewsGroup20": ((), None, None, "http://qwone.com/~jason/20Newsgroups/"),
    "OpenImagesO": (
        (TEST,),
        "openood",
        "annotations CC-BY-4.0; images listed as CC-BY-2.0, to be checked one by one",
        "https://storage.googleapis.com/openimages/web/index.html",
    ),
    "Places365": (
        (TEST,),
        None,
        "Places2 terms: non-commercial research and education",
        "http://places.csail.mit.edu/browser.html",
    ),
    "Reuters52": ((), None, None, None),
    "Reuters8": ((), None, None, None),
    "SSBHard": ((TEST,), "ssb", None, None),
    "SuMNIST": (
        (Role.BENCHMARK,),
        "sumnist",
        "MIT",
        "https://github.com/kkirchheim/sumnist",
    ),
    "Textures": ((TEST,), "textures", None, "https://www.robots.ox.ac.uk/~vgg/data/dtd/"),
    "TinyImageNet": ((Role.IN_DISTRIBUTION, TEST), None, None, "http://cs231n.stanford.edu/"),
    "TinyImageNetCrop": ((TEST,), "odin", None, "https://github.com/facebookresearch/odin"),
    "TinyImageNetResize": ((TEST,), "odin", None, "https://github.com/facebookresearch/odin"),
    "TinyImages": ((OUTLIERS,), None, None, "https://groups.csail.mit.edu/vision/TinyImages/"),
    "TinyImages300k": (
        (OUTLIERS,),
        None,
        None,
        "https://github.com/hendrycks/outlier-exposure",
    ),
    "UniformNoise": ((TEST,), None, None, None),
    "WMT16Sentences": ((), None, None, "https://www.statmt.org/wmt16/"),
    "WikiText103": ((), "wikitext", "CC-BY-SA-3.0", None),
    "WikiText2": ((), "wikitext", "CC-BY-SA-3.0", None),
    "iNaturalist": (
        (TEST,),
        "mos",
        "terms of the iNaturalist 2017 competition: non-commercial research and education",
        "https://github.com/visipedia/inat_comp/tree/master/2017",
    ),
}
# Sets with a label per pixel, which hold ID and OOD: {name: (paper, licence, page)}.
MASKED = {
    "FishyScapes": (
        "fishyscapes",
        "CC-BY-4.0 for the masks of Lost and Found",
        "https://fishyscapes.com/",
    ),
    "LostAndFound": (
        "lostandfound",
        "non-commercial licence of Daimler AG",
        "http://wwwlehre.dhbw-stuttgart.de/~sgehrig/lostAndFoundDataset/index.html",
    ),
    "MVTechAD": (
        "mvtec",
        "CC-BY-NC-SA-4.0",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad/",
    ),
    "RoadAnomaly": (
        "resynthesis",
        "research only; the images belong to others",
        "https://www.epfl.ch/labs/cvlab/data/road-anomaly/",
    ),
    "SegmentMeIfYouCan": (
        "smiyc",
        "RoadObstacle21 CC-BY-4.0; RoadAnomaly21 by image: CC-BY, CC-BY-SA or public domain",
        "https://segmentmeifyoucan.com/datasets",
    ),
    "StreetHazards": ("scaling_ood", None, "https://github.com/hendrycks/anomaly-seg"),
}


def tasks(name: str) -> set[Task]:
    """The tasks of a detector or loss."""
    return {Task.CLASSIFICATION, *([Task.SEGMENTATION] if name in PIXELWISE else [])}


def _record(name: str) -> DetectorInfo | DatasetInfo | BenchmarkInfo | None:
    """The record of a detector, data set or benchmark, or None."""
    if name in DETECTORS:
        return DetectorInfo(tasks(name), PAPERS.get(DETECTORS[name]), ai_coded=True)
    if name in BENCHMARKS:
        return BenchmarkInfo(PAPERS[BENCHMARKS[name]], {Task.CLASSIFICATION}, ai_coded=True)
    if name in DATASETS:
        roles, paper, licence, page = DATASETS[name]
        task = Task.CLASSIFICATION
        return DatasetInfo(task, licence, roles, PAPERS.get(paper), page, ai_coded=True)
    if name in MASKED:
        paper, licence, page = MASKED[name]
        task, roles = Task.SEGMENTATION, {Role.BENCHMARK}
        return DatasetInfo(task, licence, roles, PAPERS[paper], page, ai_coded=True)
    return None


class Info:
    """The attribute `info`: a class's record. Without a row of its own it has that of a base."""

    def __get__(self, instance, owner: type):
        ours = (cls.__name__ for cls in owner.__mro__ if cls.__module__.startswith("ood."))
        return next(filter(None, map(_record, ours)), None)


class OfLoss:
    """The attribute `info` of losses. All but the paper follows from what a loss says of itself."""

    def __get__(self, instance, owner: type) -> LossInfo:
        name = next(cls.__name__ for cls in owner.__mro__ if cls.__module__.startswith("ood."))
        inputs = {kind for kind in Representation if kind.value in owner.inputs}
        paper, outliers = PAPERS.get(LOSSES.get(name)), owner.outliers != "ignored"
        return LossInfo(tasks(name), inputs, outliers, paper, ai_coded=True)
