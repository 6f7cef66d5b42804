"""The KFP components and pipelines of an installed `mal[kfp]`.

`components` and `pipelines` are links to the folders of the repository; a wheel holds their files.
"""
