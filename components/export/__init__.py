from components.export.component import export as export
