from components.tune.component import tune as tune
