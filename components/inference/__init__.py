from components.inference.component import inference as inference
