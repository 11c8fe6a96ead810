from ood.methods.base import Method
from ood.methods import vmdls_settings
from ood.methods.vmdls_train import train_latent
class VMDLS(Method):
    name = "vmdls"
    Settings = vmdls_settings.Settings
    @classmethod
    def train(cls, settings, context):
        return train_latent(settings, context)
    @classmethod
    def load(cls,*a): pass
    def score(self, images): pass
