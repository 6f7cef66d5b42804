"""Pascal VOC: an XML file of boxes for each image. VOC has no masks of objects in XML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mal.data.annotations import CocoImage
from mal.labeling.writers.objects import ObjectSet, WrittenObject
from mal.labeling.writers.output import OutputNames
from mal.labeling.writers.xml_text import xml_text

_CHANNELS = 3


def write_voc(objects: ObjectSet, folder: Path) -> None:
    """Write `Annotations/IMAGE.xml` and the list `ImageSets/Main/default.txt`.

    Coordinates count from 0 and keep their decimals, as most tools read them; those of the VOC
    challenge itself count pixels from 1.
    """
    # Datumaro takes only VOC's own 20 classes without this file; it separates fields by colons.
    label_names = [name.replace(":", "_").replace("\n", " ") for name in objects.class_names]
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
        + "".join(f"{_valid(name)}:::\n" for name in label_names),
        encoding="utf-8",
    )
    names = OutputNames()
    list_file = folder / "ImageSets" / "Main" / "default.txt"
    list_file.parent.mkdir(parents=True)
    with list_file.open("w", encoding="utf-8") as file:
        for image, of_image in objects.images():
            path = names.path_for(folder / "Annotations", image.file_name, ".xml")
            path.write_text("".join(_lines(image, of_image)), encoding="utf-8")
            file.write(f"{path.relative_to(folder / 'Annotations').with_suffix('').as_posix()}\n")


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _lines(image: CocoImage, objects: list[WrittenObject]) -> Iterator[str]:
    yield f"<annotation>\n<filename>{xml_text(image.file_name)}</filename>\n"
    yield (
        f"<size><width>{image.width}</width><height>{image.height}</height>"
        f"<depth>{_CHANNELS}</depth></size>\n<segmented>0</segmented>\n"
    )
    for each in objects:
        x, y, width, height = each.box_xywh
        corners = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
        box = "".join(f"<{name}>{value:g}</{name}>" for name, value in corners.items())
        yield (
            f"<object><name>{xml_text(each.class_name)}</name><pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>0</difficult><bndbox>{box}</bndbox></object>\n"
        )
    yield "</annotation>\n"
