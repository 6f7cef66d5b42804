from components.promote.component import promote as promote
