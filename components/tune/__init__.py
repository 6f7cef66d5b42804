from .component import tune as tune
